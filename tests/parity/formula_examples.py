"""Example values of the rule in formula.py, to test another implementation of the rule by itself.

Writes formula.json.
"""

import common
import formula

EXAMPLES = (
    ("logit_scale", ()),
    ("visual.class_embedding", (64,)),
    ("visual.ln_pre.weight", (64,)),
    ("visual.bn1.running_mean", (8,)),
    ("visual.bn1.running_var", (8,)),
    ("visual.conv1.weight", (64, 3, 8, 8)),
    ("visual.proj", (128, 32)),
    ("token_embedding.weight", (1000, 64)),
    ("encoder.vis_enc_to_enc_proj.weight", (64, 48)),
    ("small1387.decoder.transformer.h.0.attn.c_attn.weight", (64, 192)),
    ("small1387.decoder.transformer.h.1.mlp.c_proj.weight", (256, 64)),
    ("paper.decoder.transformer.wte.weight", (2000, 512)),
)
INPUTS = (("image0", (10, 48)), ("vit.pixels1", (3, 48, 48)))


def example(name: str, shape: tuple[int, ...], base: float, scale: float) -> dict:
    """Returns the first and last values. JSON's shortest decimals represent f32 exactly."""
    values = formula.tensor(name, shape, base, scale).reshape(-1).tolist()
    entry = {"name": name, "shape": shape, "hash": f"{formula.fnv1a(name):016x}", "base": base, "scale": scale}
    return entry | {"first": values[:4], "last": values[-1]}


def main() -> None:
    arguments = common.parse_arguments(__doc__)
    examples = [example(name, shape, *formula.base_and_scale(name, shape)) for name, shape in EXAMPLES]
    examples += [example(f"input.{name}", shape, 0.0, 2.0) for name, shape in INPUTS]
    common.write_json(arguments.out / "formula.json", {"versions": common.versions(), "examples": examples})


if __name__ == "__main__":
    main()
