"""A source of a few blocks of text, which worker processes can import."""

import dataclasses
import os
import signal

from experiments.data.sources.source import SourceFile


@dataclasses.dataclass(frozen=True)
class SmallBlock:
    path: str
    first: int
    texts: tuple
    file_bytes: int

    def rows(self):
        for text in self.texts:
            if text == 'KILL':
                os.kill(os.getpid(), signal.SIGKILL)
            if text == 'PID':
                text = f'process {os.getpid()}'
            if text == 'MODULES':
                import sys

                text = ' '.join(sys.modules)
            yield (text,)

    def place(self, row):
        return f'{self.path}, row {self.first + row}'


class SmallSource:
    """files: for each its texts; those of a block have `block` texts."""

    def __init__(self, files, block=3, has_splits=False, name='small'):
        self.name, self.has_splits, self._block = name, has_splits, block
        self._texts = list(map(tuple, files))
        sizes = [sum(len(str(text)) for text in texts) for texts in self._texts]
        self.files = [SourceFile(f'file{i}', size) for i, size in enumerate(sizes)]
        self.num_read = 0

    def blocks(self, file):
        texts, read = self._texts[file], 0
        for start in range(0, len(texts), self._block):
            of_block = texts[start : start + self._block]
            read += sum(len(str(text)) for text in of_block)
            self.num_read += 1
            yield SmallBlock(self.files[file].path, start, of_block, read)
