"""From a fine-tuned checkpoint to a bundle: python examples/checkpoint.py FOLDER OUT

FOLDER is what Hugging Face's `save_pretrained` wrote: a BERT or DistilBERT with a head for classification or for
question answering. Nothing is trained; the weights are stored in 8 bits.
"""

from __future__ import annotations

import sys

import pocketbert


def main(checkpoint: str, out: str) -> None:
    result = pocketbert.quantize(checkpoint, out, progress=True)
    print(f"{result.bundle}: {result.file_bytes / 1e6:.1f} MB, {result.fp32_bytes / 1e6:.1f} MB in float32")
    print(f"the same answer as float32 on {result.same_answer:.1%} of {result.texts} texts")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
