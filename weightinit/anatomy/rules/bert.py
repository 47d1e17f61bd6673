"""Hugging Face's BERT, RoBERTa and DistilBERT: norm1 and norm2 follow their branches."""

from weightinit.anatomy.rules.rule import Family, Rule, Stack, W, linear
from weightinit.anatomy.traits import note_config

BLOCK = (
    *linear(r"attention\.(?:self\.query|q_lin)", "attn.q", "(h k) d"),
    *linear(r"attention\.(?:self\.key|k_lin)", "attn.k", "(h k) d"),
    *linear(r"attention\.(?:self\.value|v_lin)", "attn.v", "(h k) d"),
    *linear(r"attention\.(?:output\.dense|out_lin)", "attn.proj", "d (h k)"),
    Rule(rf"(?:attention\.output\.LayerNorm|sa_layer_norm)\.{W}", "norm1.{w}", "d"),
    *linear(r"(?:intermediate\.dense|ffn\.lin1)", "mlp.fc1", "m d"),
    *linear(r"(?:output\.dense|ffn\.lin2)", "mlp.fc2", "d m"),
    Rule(rf"(?:output\.LayerNorm|output_layer_norm)\.{W}", "norm2.{w}", "d"),
)

OUTSIDE = (
    Rule(r"embeddings\.word_embeddings\.weight", "embed.token.weight", "v d"),
    Rule(r"embeddings\.position_embeddings\.weight", "pos", "t d"),
    Rule(r"embeddings\.token_type_embeddings\.weight", "embed.type.weight", "r d"),
    Rule(rf"embeddings\.LayerNorm\.{W}", "norm_pre.{w}", "d"),
    *linear(r"pooler\.dense", "pool.fc", "d d"),
    # Masked language modelling: BERT's cls.predictions, RoBERTa's lm_head, DistilBERT's vocab_*.
    *linear(
        r"(?:cls\.predictions\.transform\.dense|lm_head\.dense|vocab_transform)",
        "pre_logits",
        "d d",
    ),
    Rule(
        rf"(?:cls\.predictions\.transform\.LayerNorm|(?:lm_head\.|vocab_)layer_norm)\.{W}",
        "pre_logits.norm.{w}",
        "d",
    ),
    *linear(r"vocab_projector", "head", "n d"),
    Rule(r"(?:cls\.predictions|lm_head)\.decoder\.weight", "head.weight", "n d"),
    Rule(r"(?:cls\.predictions|lm_head)\.bias", "head.bias", "n"),
    # Tied to the bias above in a module; a file may hold it twice.
    Rule(r"(?:cls\.predictions|lm_head)\.decoder\.bias", "head.decoder.bias", "n"),
    *linear(r"cls\.seq_relationship", "head_pair", "r d"),
    *linear(r"(?:classifier\.dense|pre_classifier)", "pre_logits", "d d"),
    *linear(r"(?:classifier|classifier\.out_proj|qa_outputs)", "head", "n d"),
)

STACKS = (Stack("blocks", r"(?:encoder|transformer)\.layer\.(?P<block>\d+)\.", BLOCK),)

FAMILIES = (
    Family(
        "bert",
        "transformers",
        r"(?:encoder|transformer)\.layer\.\d+\.attention\.(?:self|q_lin)\.",
        STACKS,
        OUTSIDE,
        r"embeddings\.(?:position_ids|token_type_ids)",
        form="post_norm",
        note=note_config,
        proven=True,
    ),
)
