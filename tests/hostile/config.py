"""Attacks by config.json."""

from hostile.base import attack, edit_config

HUGE = 10**12


def update(folder, **changes):
    edit_config(folder, lambda config: config.update(changes))


@attack("schema '2', this version reads 1: upgrade")
def schema_newer(folder):
    update(folder, schema=2)


@attack("schema")
def schema_text(folder):
    update(folder, schema="1")


@attack("schema")
def schema_true(folder):
    update(folder, schema=True)


@attack("schema 'None'")
def of_another_library(folder):
    edit_config(folder, lambda _: {"architecture": "vit_base_patch16_224", "num_classes": 1000})


@attack(r"unknown keys \[auto_map, model_file\]")
def names_code(folder):
    update(folder, model_file="evil.py", auto_map={"AutoModel": "evil.Model"})


@attack(r"lacks \[licence, sha256\]")
def lacks_keys(folder):
    edit_config(folder, lambda config: [config.pop(key) for key in ("licence", "sha256")] and None)


@attack("appears twice")
def duplicate_key(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace("{", '{"method": "share",', 1))


@attack("not sound JSON")
def not_json(folder):
    (folder / "config.json").write_text("import os")


@attack("not sound JSON")
def not_text(folder):
    (folder / "config.json").write_bytes(b"\x80\x04\x95")


@attack("not sound JSON")
def deep_nesting(folder):
    (folder / "config.json").write_text('{"a":' * 200_000)


@attack("holds a JSON list")
def a_list(folder):
    (folder / "config.json").write_text("[1]")


@attack("more than .* entries")
def a_million_entries(folder):
    (folder / "config.json").write_text('{"sizes": [' + "0," * 500_000 + "0]}")


@attack("not Unicode")
def half_a_character(folder):
    update(folder, provenance={"author": "\ud800"})


@attack("not finite")
def provenance_infinite(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"steps": 10', '"steps": 1e999'))


@attack("kind of the bundle")
def kind_code(folder):
    update(folder, kind="os.system('id')")


@attack("kind 'executable', TemplateBundle reads")
def kind_unknown(folder):
    update(folder, kind="executable")


@attack("TemplateBundle reads 'templates'")
def kind_hypernetwork(folder):
    update(folder, kind="hypernetwork")


@attack("method")
def method_code(folder):
    update(folder, method="__import__('os').system('id')")


@attack("must agree")
def method_of_other_options(folder):
    update(folder, method="tleg")


@attack("method 'getattr' is not supported")
def options_method_unknown(folder):
    edit_config(folder, lambda config: config["options"].update(method="getattr"))


@attack("licence of the bundle")
def licence_injects_yaml(folder):
    update(folder, licence="mit\ntags: [official]")


@attack("sha256 of the bundle")
def sha256_missing(folder):
    update(folder, sha256="")


@attack("sha256 of the bundle")
def sha256_short(folder):
    update(folder, sha256="abc")


@attack("depth of the bundle")
def depth_zero(folder):
    update(folder, depth=0)


@attack("depth of the bundle")
def depth_huge(folder):
    update(folder, depth=HUGE)


@attack("depth of the bundle")
def depth_true(folder):
    update(folder, depth=True)


def sizes(**changes):
    return lambda config: config["sizes"].update(changes)


@attack("sizes of the bundle")
def size_zero(folder):
    edit_config(folder, sizes(d=0))


@attack("sizes of the bundle")
def size_huge(folder):
    edit_config(folder, sizes(t=HUGE))


@attack("sizes of the bundle")
def size_fraction(folder):
    edit_config(folder, sizes(d=8.0))


@attack("sizes of the bundle")
def size_label_path(folder):
    edit_config(folder, sizes(**{"../d": 8}))


@attack("at most 256")
def sizes_of_thousands(folder):
    edit_config(folder, sizes(**{f"x{i}": 1 for i in range(9_000)}))


@attack("sizes of the bundle lack h, k")
def sizes_lack_heads(folder):
    edit_config(folder, lambda config: [config["sizes"].pop(label) for label in "hk"] and None)


@attack("config calls for")
def width_disagrees(folder):
    edit_config(folder, sizes(d=16))


@attack("must not be wider")
def templates_are_wider(folder):
    edit_config(folder, sizes(d=4))


@attack("fitted")
def fitted_text(folder):
    update(folder, fitted="all")


@attack("fitted")
def fitted_odd_entry(folder):
    update(folder, fitted=[{"depth": 2, "sizes": {}, "script": "x"}])


@attack("at most 256")
def fitted_of_thousands(folder):
    update(folder, fitted=[{"depth": 2, "sizes": {}}] * 4_000)


@attack("malformed")
def options_empty(folder):
    update(folder, options={})


@attack("options")
def options_list(folder):
    update(folder, options=[1])


@attack("0 kinds")
def options_no_kinds(folder):
    edit_config(folder, lambda config: config["options"].update(kinds={}))


@attack("allowed are 256")
def options_thousands_of_kinds(folder):
    kinds = {f"k{i}": {"number": 1, "shape": [1], "parts": 1} for i in range(3_000)}
    edit_config(folder, lambda config: config["options"].update(kinds=kinds))


@attack("unsound|unknown entries|malformed")
def options_kind_names_code(folder):
    def change(config):
        config["options"]["kinds"]["norm1.weight"]["factory"] = "os.system"

    edit_config(folder, change)


@attack("kind mlp.fc1.weight have 1 axes, and what they make has 2")
def options_shape_of_another_rank(folder):
    def change(config):
        config["options"]["kinds"]["mlp.fc1.weight"]["shape"] = [8]

    edit_config(folder, change)


@attack("the config calls for")
def options_shape_of_terabytes(folder):
    def change(config):
        config["options"]["kinds"]["norm1.weight"]["shape"] = [2**30]

    edit_config(folder, change)
