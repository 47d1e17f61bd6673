"""Hugging Face's BERT and RoBERTa: post-norm blocks, so norm1 and norm2 follow their branches."""

from weightinit.anatomy.rules.rule import Family, Rule, Stack
from weightinit.anatomy.traits import look_config

W = r"(?P<w>weight|bias)"

BLOCK = (
    *(
        rule
        for name, letter in (("query", "q"), ("key", "k"), ("value", "v"))
        for rule in (
            Rule(rf"attention\.self\.{name}\.weight", f"attn.{letter}.weight", "(h k) d"),
            Rule(rf"attention\.self\.{name}\.bias", f"attn.{letter}.bias", "(h k)"),
        )
    ),
    Rule(r"attention\.output\.dense\.weight", "attn.proj.weight", "d (h k)"),
    Rule(r"attention\.output\.dense\.bias", "attn.proj.bias", "d"),
    Rule(rf"attention\.output\.LayerNorm\.{W}", "norm1.{w}", "d"),
    Rule(r"intermediate\.dense\.weight", "mlp.fc1.weight", "m d"),
    Rule(r"intermediate\.dense\.bias", "mlp.fc1.bias", "m"),
    Rule(r"output\.dense\.weight", "mlp.fc2.weight", "d m"),
    Rule(r"output\.dense\.bias", "mlp.fc2.bias", "d"),
    Rule(rf"output\.LayerNorm\.{W}", "norm2.{w}", "d"),
)

OUTSIDE = (
    Rule(r"embeddings\.word_embeddings\.weight", "embed.token.weight", "v d"),
    Rule(r"embeddings\.position_embeddings\.weight", "pos", "t d"),
    Rule(r"embeddings\.token_type_embeddings\.weight", "embed.type.weight", "r d"),
    Rule(rf"embeddings\.LayerNorm\.{W}", "norm_pre.{w}", "d"),
    Rule(r"pooler\.dense\.weight", "pool.fc.weight", "d d"),
    Rule(r"pooler\.dense\.bias", "pool.fc.bias", "d"),
    # Masked language modelling: BERT's cls.predictions, RoBERTa's lm_head.
    Rule(r"(?:cls\.predictions\.transform|lm_head)\.dense\.weight", "pre_logits.weight", "d d"),
    Rule(r"(?:cls\.predictions\.transform|lm_head)\.dense\.bias", "pre_logits.bias", "d"),
    Rule(
        rf"(?:cls\.predictions\.transform\.LayerNorm|lm_head\.layer_norm)\.{W}",
        "pre_logits.norm.{w}",
        "d",
    ),
    Rule(r"(?:cls\.predictions|lm_head)\.decoder\.weight", "head.weight", "n d"),
    Rule(r"(?:cls\.predictions|lm_head)\.bias", "head.bias", "n"),
    # Tied to the bias above in a module; a file may hold it twice.
    Rule(r"(?:cls\.predictions|lm_head)\.decoder\.bias", "head.decoder.bias", "n"),
    Rule(r"cls\.seq_relationship\.weight", "head_pair.weight", "r d"),
    Rule(r"cls\.seq_relationship\.bias", "head_pair.bias", "r"),
    Rule(r"classifier\.dense\.weight", "pre_logits.weight", "d d"),
    Rule(r"classifier\.dense\.bias", "pre_logits.bias", "d"),
    Rule(r"(?:classifier|classifier\.out_proj|qa_outputs)\.weight", "head.weight", "n d"),
    Rule(r"(?:classifier|classifier\.out_proj|qa_outputs)\.bias", "head.bias", "n"),
)

STACKS = (Stack("blocks", r"encoder\.layer\.(?P<block>\d+)\.", BLOCK),)

FAMILIES = (
    Family(
        "bert",
        "transformers",
        r"encoder\.layer\.\d+\.attention\.self\.",
        STACKS,
        OUTSIDE,
        r"embeddings\.(?:position_ids|token_type_ids)",
        form="post_norm",
        look=look_config,
    ),
)
