"""The content of a data file as bytes, as text and as lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.support.errors import UserError

SUPPORTED_FORMS = "SQuAD JSON, TSV or CSV with a header, JSON lines, a JSON list, or Parquet"

# How some contents begin that are not UTF-8 text, and what they are.
BINARY_FORMS = {
    b"\x1f\x8b": "gzip-compressed; decompress it first",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"BZh": "bzip2-compressed; decompress it first",
    b"\xfd7zXZ": "xz-compressed; decompress it first",
    b"\x28\xb5\x2f\xfd": "zstd-compressed; decompress it first",
    b"\xff\xfe": "UTF-16; save it as UTF-8",
    b"\xfe\xff": "UTF-16; save it as UTF-8",
}


def exists(path: Path) -> bool:
    """Returns whether there is such a file or folder. It counts as there if permissions hide it."""
    try:
        return path.exists()
    except PermissionError:
        return True  # reading it will report the permissions
    except (OSError, ValueError):
        return False  # the name is too long, or has a NUL in it


def binary_form(content: bytes) -> str | None:
    """Returns what a known binary content is and what to do about it, None for any other content."""
    return next((form for start, form in BINARY_FORMS.items() if content.startswith(start)), None)


def read_content(path: Path) -> bytes:
    """Returns the bytes of a file. Raises UserError if it is missing, a folder, unreadable or empty."""
    try:
        content = path.read_bytes()
    except IsADirectoryError:
        raise UserError("this is a folder; name a file in it", file=path) from None
    except PermissionError as error:
        if path.is_dir():  # Windows reports a folder so
            raise UserError("this is a folder; name a file in it", file=path) from None
        raise UserError(f"the file cannot be read ({error.strerror}); check its permissions", file=path) from None
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) or not exists(path):
            raise UserError(
                f'there is no such file; give {SUPPORTED_FORMS}, or a hub data set as "owner/name:split"', file=path
            ) from None
        raise UserError(f"the file cannot be read ({error}); give a readable one", file=path) from None
    if not content.strip():
        raise UserError(f"the file is empty; give {SUPPORTED_FORMS}", file=path)
    return content


def decode_text(path: Path, content: bytes) -> str:
    """Decodes the content of a file as UTF-8. Raises UserError, with the line, if it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        form = binary_form(content)
        if form is not None:
            raise UserError(f"this is not text but {form}", file=path) from None
        line = content.count(b"\n", 0, error.start) + 1
        # utf-8-sig counts from behind a byte order mark.
        offset = error.start + (3 if content.startswith(b"\xef\xbb\xbf") else 0)
        raise UserError(
            f"byte {offset} (0x{content[offset]:02x}) is not UTF-8; save the file as UTF-8",
            file=path,
            field=f"line {line}",
        ) from None


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yields the number and the text of each line that is not blank.

    Only a newline ends a line; `splitlines` would also split at U+2028 inside a text.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.removesuffix("\r")
