"""Tokenizer files of the tests, trained on real text in a second."""

import inspect
import io
import typing

import sentencepiece
import tokenizers

REAL_TEXT = inspect.getsource(typing)


def write_sentencepiece(path, **options):
    """Of 400 pieces, which takes any text and gives it back; `options` are SentencePiece's own."""
    model = io.BytesIO()
    exact = dict(normalization_rule_name='identity', add_dummy_prefix=False, remove_extra_whitespaces=False)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(REAL_TEXT.splitlines()),
        model_writer=model,
        vocab_size=400,
        model_type='bpe',
        byte_fallback=True,
        minloglevel=2,
        **exact | options,
    )
    path.write_bytes(model.getvalue())
    return path


def write_huggingface(path, special_tokens=('<|endoftext|>',)):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special_tokens),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(REAL_TEXT.splitlines(keepends=True), trainer)
    tokenizer.save(str(path))
    return path
