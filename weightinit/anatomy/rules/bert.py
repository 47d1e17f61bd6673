"""Hugging Face's BERT and RoBERTa: post-norm blocks, so norm1 and norm2 follow their branches."""

from weightinit.anatomy.rules.rule import Family, Rule, Stack, W, linear
from weightinit.anatomy.traits import note_config

BLOCK = (
    *linear(r"attention\.self\.query", "attn.q", "(h k) d"),
    *linear(r"attention\.self\.key", "attn.k", "(h k) d"),
    *linear(r"attention\.self\.value", "attn.v", "(h k) d"),
    *linear(r"attention\.output\.dense", "attn.proj", "d (h k)"),
    Rule(rf"attention\.output\.LayerNorm\.{W}", "norm1.{w}", "d"),
    *linear(r"intermediate\.dense", "mlp.fc1", "m d"),
    *linear(r"output\.dense", "mlp.fc2", "d m"),
    Rule(rf"output\.LayerNorm\.{W}", "norm2.{w}", "d"),
)

OUTSIDE = (
    Rule(r"embeddings\.word_embeddings\.weight", "embed.token.weight", "v d"),
    Rule(r"embeddings\.position_embeddings\.weight", "pos", "t d"),
    Rule(r"embeddings\.token_type_embeddings\.weight", "embed.type.weight", "r d"),
    Rule(rf"embeddings\.LayerNorm\.{W}", "norm_pre.{w}", "d"),
    *linear(r"pooler\.dense", "pool.fc", "d d"),
    # Masked language modelling: BERT's cls.predictions, RoBERTa's lm_head.
    *linear(r"(?:cls\.predictions\.transform|lm_head)\.dense", "pre_logits", "d d"),
    Rule(
        rf"(?:cls\.predictions\.transform\.LayerNorm|lm_head\.layer_norm)\.{W}",
        "pre_logits.norm.{w}",
        "d",
    ),
    Rule(r"(?:cls\.predictions|lm_head)\.decoder\.weight", "head.weight", "n d"),
    Rule(r"(?:cls\.predictions|lm_head)\.bias", "head.bias", "n"),
    # Tied to the bias above in a module; a file may hold it twice.
    Rule(r"(?:cls\.predictions|lm_head)\.decoder\.bias", "head.decoder.bias", "n"),
    *linear(r"cls\.seq_relationship", "head_pair", "r d"),
    *linear(r"classifier\.dense", "pre_logits", "d d"),
    *linear(r"(?:classifier|classifier\.out_proj|qa_outputs)", "head", "n d"),
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
        note=note_config,
        proven=True,
    ),
)
