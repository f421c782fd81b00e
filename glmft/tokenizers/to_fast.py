"""A family's tokenizer as a fast one of transformers, with the same ids, for programs that have none of our code."""

from itertools import pairwise
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from glmft.errors import ConfigError
from glmft.tokenizers.chatglm4 import PATTERN

SPACE = "▁"
RENAMED = {"sop": "<sop>", "eop": "<eop>"}  # which as they are would be found inside of words


def fast_tokenizer(tokenizer: Any) -> PreTrainedTokenizerFast:
    """The fast form of a family's tokenizer. Raises ConfigError for a family, or a vocabulary, that has none."""
    makers = {"glm2": _of_sentencepiece, "glm3": _of_sentencepiece, "glm4": _of_tiktoken}
    if tokenizer.family not in makers:
        raise ConfigError(f"{tokenizer.family}: has no fast tokenizer")
    backend = makers[tokenizer.family](tokenizer)
    opening = ("[gMASK]", "<sop>")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{opening[0]} {opening[1]} $A",
        pair=f"{opening[0]} {opening[1]} $A $B {tokenizer.eos_token}",
        special_tokens=[(name, backend.token_to_id(name)) for name in (*opening, tokenizer.eos_token)],
    )
    template = tokenizer.get_chat_template()
    named = {"eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token, "unk_token": tokenizer.unk_token}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=template.replace("[gMASK]sop", "[gMASK]<sop>"),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **{name: token for name, token in named.items() if token},
    )


def _special(backend: Tokenizer, names: list[str]) -> Tokenizer:
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return backend


def _of_sentencepiece(tokenizer: Any) -> Tokenizer:
    """Pairs are merged as sentencepiece does: first whichever gives the piece with the lowest id."""
    sp = tokenizer.sp
    pieces = [sp.id_to_piece(i) for i in range(sp.vocab_size())]
    ids = {piece: i for i, piece in enumerate(pieces)}
    plain = [i for i in range(len(pieces)) if not (sp.is_control(i) or sp.is_unknown(i) or sp.is_byte(i))]
    if any(sp.get_score(a) < sp.get_score(b) for a, b in pairwise(plain)) or not sp.encode("  "):
        raise ConfigError(f"{tokenizer.vocab_file}: is no byte-pair vocabulary like the official one")
    joined = {pieces[i] for i in plain}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in (pieces[i] for i in plain)
        for cut in range(1, len(piece))
        if piece[:cut] in joined and piece[cut:] in joined
    ]
    backend = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    behind = [RENAMED.get(name, name) for name in tokenizer.special_tokens]
    return _special(backend, [*(pieces[i] for i in range(3)), *behind])


def _of_tiktoken(tokenizer: Any) -> Tokenizer:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    backend = TikTokenConverter(tokenizer.vocab_file, pattern=PATTERN).converted()
    return _special(backend, list(tokenizer.special_tokens))
