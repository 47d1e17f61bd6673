"""Bundles on the Hugging Face Hub; huggingface_hub is imported when it is first needed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from weightinit._version import __version__
from weightinit.errors import BundleError

__all__ = ["Client", "push", "split_revision"]

CONFIG, WEIGHTS, CARD = FILES = ("config.json", "model.safetensors", "README.md")
REPO = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^@]+))?")


def split_revision(name: str, revision: str | None) -> tuple[str, str | None] | None:
    """Split ``org/name@revision``; return None if ``name`` is no name of a Hub repository."""
    match = REPO.fullmatch(name)
    if match is None:
        return None
    repo, named = match["repo"], match["revision"]
    if named and revision and named != revision:
        raise BundleError(
            f"two revisions are given, {named!r} in {name!r} and revision={revision!r}: pass one"
        )
    return repo, named or revision


@dataclass(frozen=True)
class Client:
    """Arguments of huggingface_hub for the files that it fetches."""

    cache_dir: str | os.PathLike[str] | None = None
    token: str | bool | None = None
    local_files_only: bool = False

    @property
    def offline(self) -> bool:
        """Whether only the cache is read."""
        from huggingface_hub import constants

        return bool(self.local_files_only) or constants.HF_HUB_OFFLINE

    def download(
        self,
        repo: str,
        revision: str | None,
        *,
        files: Sequence[str] = FILES,
        what: str = "bundle",
    ) -> Path:
        """Return the cached folder of a repository's files; its name is the resolved commit.

        Only ``files`` are ever fetched: no pickle, no code. ``what`` names them in messages.
        """
        with _explained(repo, revision, f"download the {what}"):
            from huggingface_hub import snapshot_download

            folder = snapshot_download(
                repo,
                revision=revision,
                cache_dir=None if self.cache_dir is None else Path(self.cache_dir),
                token=self.token,
                local_files_only=self.local_files_only,
                allow_patterns=list(files),
                library_name="weightinit",
                library_version=__version__,
            )
        return Path(folder)


def push(
    folder: Path,
    repo: str,
    private: bool | None,
    revision: str | None,
    commit_message: str,
    create_pr: bool,
    token: str | bool | None,
) -> str:
    """Upload a bundle in one commit, README.md if there is none; return ``"org/name@commit"``."""
    with _explained(repo, revision, "upload the bundle"):
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi(token=token, library_name="weightinit", library_version=__version__)
        api.create_repo(repo, private=private, exist_ok=True)
        if revision not in (None, "main") and not revision.startswith("refs/"):
            api.create_branch(repo, branch=revision, exist_ok=True)
        names = [CONFIG, WEIGHTS]
        if not api.file_exists(repo, CARD, revision=revision):
            names.append(CARD)
        # One commit, where upload_folder may make several: no reader ever sees half a bundle.
        info = api.create_commit(
            repo,
            [CommitOperationAdd(name, folder / name) for name in names],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    return f"{repo}@{info.oid}"


@contextmanager
def _explained(repo: str, revision: str | None, action: str) -> Iterator[None]:
    """Turn whatever the client raises into a BundleError that says what to do."""
    try:
        yield
    except Exception as error:  # the client's HTTP library differs by version, and so its errors
        raise BundleError(
            f"cannot {action} {repo!r} (revision {revision or 'main'!r}): " + _explain(error, repo)
        ) from error


def _explain(error: Exception, repo: str) -> str:
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    statuses = [getattr(getattr(e, "response", None), "status_code", None) for e in chain]
    status = next((s for s in statuses if s is not None), None)
    page = f"{constants.ENDPOINT}/{repo}"

    def among(*kinds: type[BaseException]) -> bool:
        return any(isinstance(e, kinds) for e in chain)

    if among(hub.GatedRepoError):
        return f"it is gated. Accept its conditions at {page} and pass token="
    if among(hub.RepositoryNotFoundError):
        return (
            "there is no such repository, or it is private. Check the name; for a private one pass "
            "token= or run `hf auth login`"
        )
    if among(hub.RevisionNotFoundError):
        return f"it has no such revision. Use a branch, tag or commit of {page}/commits/main"
    if status in (401, 403):
        return (
            f"access was denied ({status}). Pass a token= with the permission, or run `hf auth "
            "login`"
        )
    if among(hub.HFValidationError):
        return f"{error}. Use a name of the form org/name"
    if constants.HF_HUB_OFFLINE:
        return "it is not in the cache, and HF_HUB_OFFLINE is set. Unset it once to download it"
    if among(hub.LocalEntryNotFoundError) and len(chain) == 1:
        return "it is not in the cache. Load it once with local_files_only=False"
    reason = str(chain[-1]).strip().splitlines() or [type(chain[-1]).__name__]
    return (
        f"{reason[0][:300].rstrip('.')}. Check the connection and try again: nothing partial is "
        "kept or used"
    )
