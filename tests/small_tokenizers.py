"""Tokenizer files of the tests, trained on real text in a second."""

import inspect
import io
import typing

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

REAL_TEXT = inspect.getsource(typing)

NAMES = ('<unk>', '<s>', '</s>', '<|im_end|>')  # ids 0 to 3
IDS = {'bos_token_id': 1, 'eos_token_id': 2}


def write_sentencepiece(path, **options):
    """Of 400 pieces, which takes any text and gives it back; `options` are SentencePiece's own."""
    model = io.BytesIO()
    exact = dict(normalization_rule_name='identity', add_dummy_prefix=False, remove_extra_whitespaces=False)
    kind = dict(model_type='bpe', byte_fallback=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(REAL_TEXT.splitlines()),
        model_writer=model,
        vocab_size=400,
        minloglevel=2,
        **exact | kind | options,
    )
    path.write_bytes(model.getvalue())
    return path


def write_converted(path, sentencepiece_model, with_prefix=False):
    """The tokenizer.json that transformers 4 converts a SentencePiece BPE model to."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_model.read_bytes())
    ids = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    pairs = [(text[:cut], text[cut:]) for text in scores for cut in range(1, len(text))]
    merges = [pair for pair in pairs if all(part in scores for part in pair)]
    merges.sort(key=lambda pair: (-scores[''.join(pair)], ids[pair[0]], ids[pair[1]]))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges, unk_token='<unk>', byte_fallback=True))
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    escape = normalizers.Replace(' ', '▁')
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), escape]) if with_prefix else escape
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), *[decoders.Strip(' ', 1)] * with_prefix]
    )
    tokenizer.add_special_tokens(list(NAMES[:3]))
    tokenizer.save(str(path))
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


def write_huggingface_kinds(folder, sentencepiece_model):
    """Of every kind of model, of a dozen tokens, with all else that a file may have; one normalizes as that model."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_model.read_bytes())
    names = {name: i for i, name in enumerate(['[UNK]', '</s>', *'defx():', 'de', '##f'])}
    kinds = {
        'bpe': tokenizers.models.BPE(names, [('d', 'e')], unk_token='[UNK]', byte_fallback=True),
        'unigram': tokenizers.models.Unigram([(name, -1.0 - i) for name, i in names.items()], 0, False),
        'wordpiece': tokenizers.models.WordPiece(names, unk_token='[UNK]', max_input_chars_per_word=100),
        'wordlevel': tokenizers.models.WordLevel(names, unk_token='[UNK]'),
    }
    normalizers, splits, decoders = tokenizers.normalizers, tokenizers.pre_tokenizers, tokenizers.decoders
    regex = tokenizers.Regex('é')
    nfkc = normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap)
    for kind, model in kinds.items():
        tokenizer = tokenizers.Tokenizer(model)
        first = nfkc if kind == 'unigram' else normalizers.NFKC()
        tokenizer.normalizer = normalizers.Sequence([first, normalizers.Prepend('x'), normalizers.Replace(regex, 'e')])
        tokenizer.pre_tokenizer = splits.Sequence(
            [splits.Split(' ', 'removed'), splits.Metaspace(), splits.Digits(True)]
        )
        tokenizer.decoder = decoders.Sequence([decoders.Replace('x', ' '), decoders.Strip(' ', 1, 0), decoders.Fuse()])
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing('</s> $A', special_tokens=[('</s>', 1)])
        tokenizer.add_special_tokens(['</s>', tokenizers.AddedToken('<x>', lstrip=True)])
        tokenizer.enable_truncation(8)
        tokenizer.enable_padding(length=4)
        tokenizer.save(str(folder / f'{kind}.json'))
