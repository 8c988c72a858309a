"""The files of a folder as Hugging Face's `save_pretrained` writes it."""

CONFIG, WEIGHTS, INDEX = 'config.json', 'model.safetensors', 'model.safetensors.index.json'
GENERATION, TOKENIZER_CONFIG, NAMES = 'generation_config.json', 'tokenizer_config.json', 'special_tokens_map.json'
ADDED_TOKENS, CHAT_TEMPLATE = 'added_tokens.json', 'chat_template.jinja'
TOKENIZERS = ('tokenizer.json', 'tokenizer.model')  # the first that is there is what we read text with
