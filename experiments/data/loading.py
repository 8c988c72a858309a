"""The text and the tokenizer that a config names."""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.data import token_cache, tokenizers


class Data(NamedTuple):
    """Both splits as token arrays, and where the weights come from that training starts from, if not at random."""

    train: token_cache.TokenData
    validation: token_cache.TokenData
    initial_weights: dict[str, Any] | None = None  # as initial_weights.find gives


def load_tokenizer(config: ConfigDict) -> tokenizers.Tokenizer:
    """The tokenizer of a config; ValueError as `tokenizers.load_tokenizer`."""
    return tokenizers.load_tokenizer(config.tokenizer, config.special_tokens, vocab_size=config.vocab_size)


def load_data(config: ConfigDict, tokenizer: tokenizers.Tokenizer) -> Data:
    """The data of a config, prepared and tokenised at its first use; ValueError as `token_cache.load_tokens`."""
    splits = (
        token_cache.load_tokens(
            config.dataset,
            split,
            tokenizer,
            text_feature=config.text_feature,
            invalid_text=config.invalid_text,
            data_dir=config.data_dir or None,
            cache_dir=config.cache_dir or None,
        )
        for split in (config.train_split, config.validation_split)
    )
    return Data(*splits)
