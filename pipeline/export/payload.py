"""Packs a folder of files into one byte string, as ExecuTorch's Core ML delegate carries its model.

The contents of the files come first, one after the other. The description of the tree follows as JSON, written
backwards so that a reader can begin at the end. ExecuTorch's own writer (`executorchcoreml.flatten_directory_contents`)
orders the files as the operating system lists them, and crashes on an empty one. Here they are sorted, so that the same
files give the same bytes everywhere. ExecuTorch's reader accepts both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

FILE, FOLDER = 0, 1  # a node's `kind`
MAX_DESCRIPTION_BYTES = 1 << 20

Tree = dict[str, "Tree | bytes"]


def pack(files: Mapping[str, bytes], root: str = "model") -> bytes:
    """Packs files into one byte string; their names are paths below the folder `root`, with forward slashes."""
    tree: Tree = {}
    for path in sorted(files):
        *folders, name = PurePosixPath(path).parts
        folder = tree
        for part in folders:
            below = folder.setdefault(part, {})
            if isinstance(below, bytes):
                raise ValueError(f"{part} is a file and a folder")
            folder = below
        folder[name] = files[path]
    contents: list[bytes] = []
    nodes: list[dict[str, Any]] = []

    def add(name: str, item: Tree | bytes) -> int:
        """Adds everything below a node, then the node, and returns its number. The last node is the root."""
        children: dict[str, int] = {}
        region = {"offset": 0, "size": 0}
        if isinstance(item, bytes):
            region = {"offset": sum(len(content) for content in contents), "size": len(item)}
            contents.append(item)
        else:
            children = {child: add(child, below) for child, below in sorted(item.items())}
        kind = FILE if isinstance(item, bytes) else FOLDER
        nodes.append({"children": children, "dataRegion": region, "kind": kind, "name": name})
        return len(nodes) - 1

    add(root, tree)
    description = json.dumps({"nodes": nodes}, separators=(",", ":")).encode("ascii")
    return b"".join([*contents, description[::-1]])


def unpack(data: bytes) -> dict[str, bytes]:
    """Returns the files by their paths below the root.

    Raises:
        ValueError: the bytes are not such a file system, or only a part of one.
    """
    # The description may be followed by the last bytes of the files, which are not text.
    reversed_text = bytes(data[: -MAX_DESCRIPTION_BYTES - 1 : -1]).decode("utf-8", errors="replace")
    try:
        nodes = json.JSONDecoder().raw_decode(reversed_text)[0]["nodes"]
        files: dict[str, bytes] = {}

        def collect(index: int, path: str, parent: int) -> None:
            node = nodes[index]
            if not 0 <= index < parent:  # children come before their folder, so that the tree has no cycle
                raise ValueError(f"item {index} is inside an item before it")
            if node["kind"] == FOLDER:
                for name, child in node["children"].items():
                    if name in ("", ".", "..") or "/" in name or "\\" in name:
                        raise ValueError(f"{name!r} is no file's name")
                    collect(child, f"{path}/{name}" if path else name, index)
                return
            start, size = node["dataRegion"]["offset"], node["dataRegion"]["size"]
            if not 0 <= start <= start + size <= len(data):
                raise ValueError(f"{path} ends at byte {start + size} of {len(data)}")
            files[path] = bytes(data[start : start + size])

        collect(len(nodes) - 1, "", len(nodes))
    except (json.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("its list of files is cut or altered") from None
    return files


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Writes the files of `unpack` below a folder."""
    for path, contents in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(contents)
