"""Bundles on the Hugging Face Hub; huggingface_hub is imported when it is first needed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from weightinit._version import __version__
from weightinit.errors import BundleError

__all__ = ["Client", "push", "split_revision"]

CONFIG, WEIGHTS, CARD = FILES = ("config.json", "model.safetensors", "README.md")
REPO = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^@]+))?")
#: What git allows as the name of a branch or tag; the client makes a path of it.
REVISION = re.compile(r"(?!.*(\.\.|//|/\.))(?![./])[^\x00-\x20\x7f~^:?*\[\\]{1,255}")
COMMIT = re.compile(r"[0-9a-f]{40}")
SECRET = re.compile(r"(Bearer\s+|hf_)[^\s'\"\\]+")


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


def _check(revision: object, token: object) -> None:
    """Raise BundleError for a revision or a token that the client must not see."""
    if revision is not None and not (isinstance(revision, str) and REVISION.fullmatch(revision)):
        raise BundleError(
            f"revision {repr(revision)[:80]} is no name of a branch, tag or commit: pass one"
        )
    sound = isinstance(token, str) and re.fullmatch("[!-~]+", token)
    if not (token is None or isinstance(token, bool) or sound):
        raise BundleError(
            "token= is no text of printable characters without blanks; what was read from a file "
            "wants .strip()"
        )


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

    @property
    def _folder(self) -> Path | None:
        return None if self.cache_dir is None else Path(self.cache_dir)

    def download(
        self,
        repo: str,
        revision: str | None,
        *,
        files: Sequence[str] = FILES,
        limits: Mapping[str, int] = MappingProxyType({}),
        what: str = "bundle",
    ) -> Path:
        """Return the cached folder of a repository's files; its name is the resolved commit.

        Only ``files`` are ever fetched: no pickle, no code. ``limits`` are most bytes by file, and
        ``what`` names them in messages.
        """
        _check(revision, self.token)
        if limits and not self.offline:
            self._check_sizes(repo, revision, limits)
        with _explained(repo, revision, f"download the {what}"):
            from huggingface_hub import snapshot_download

            folder = snapshot_download(
                repo,
                revision=revision,
                cache_dir=self._folder,
                token=self.token,
                local_files_only=self.local_files_only,
                allow_patterns=list(files),
                library_name="weightinit",
                library_version=__version__,
            )
        return Path(folder)

    def _check_sizes(self, repo: str, revision: str | None, limits: Mapping[str, int]) -> None:
        """Raise BundleError if the Hub states a larger file than is allowed."""
        from huggingface_hub import HfApi, try_to_load_from_cache

        if COMMIT.fullmatch(revision or "") and all(
            isinstance(try_to_load_from_cache(repo, name, self._folder, revision), str)
            for name in limits
        ):
            return
        api = HfApi(token=self.token, library_name="weightinit", library_version=__version__)
        try:
            info = api.model_info(repo, revision=revision or "main", files_metadata=True)
        except Exception:  # the download meets it again and explains it, or the cache serves
            return
        for file in info.siblings or ():
            if (file.size or 0) > (limit := limits.get(file.rfilename, sys.maxsize)):
                raise BundleError(
                    f"{file.rfilename} of {repo!r} has {file.size} bytes, over the limit of "
                    f"{limit}: pass max_bytes= to allow it"
                )


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
    _check(revision, token)
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

    def among(kind: type[BaseException]) -> bool:
        return any(isinstance(e, kind) for e in chain)

    known = {
        hub.GatedRepoError: f"it is gated. Accept its conditions at {page} and pass token=",
        hub.RepositoryNotFoundError: "there is no such repository, or it is private. Check the "
        "name; for a private one pass token= or run `hf auth login`",
        hub.RevisionNotFoundError: "it has no such revision. Use a branch, tag or commit of "
        f"{page}/commits/main",
    }
    for kind, reason in known.items():
        if among(kind):
            return reason
    if status in (401, 403):
        return f"access was denied ({status}). Pass a token= that has it, or run `hf auth login`"
    if among(hub.HFValidationError):
        return f"{error}. Use a name of the form org/name"
    if constants.HF_HUB_OFFLINE:
        return "it is not in the cache, and HF_HUB_OFFLINE is set. Unset it once to download it"
    if among(hub.LocalEntryNotFoundError) and len(chain) == 1:
        return "it is not in the cache. Load it once with local_files_only=False"
    reason = str(chain[-1]).strip().splitlines() or [type(chain[-1]).__name__]
    said = SECRET.sub(r"\1***", reason[0])
    return (
        f"{said[:300].rstrip('.')}. Check the connection and try again: nothing partial is "
        "kept or used"
    )
