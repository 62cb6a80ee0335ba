"""The in-memory file system in which ExecuTorch's Core ML delegate carries its model: a folder of files as one string of bytes.

The contents of the files lie one after the other. A description of the tree follows, as JSON that is spelled backwards, so that a reader can
begin at the end. ExecuTorch's own writer (`executorchcoreml.flatten_directory_contents`) puts the files in the order in which the operating
system lists them (and dies of an empty one); here they are sorted, so that the same files are the same bytes everywhere. ExecuTorch's reader takes
either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath

FILE, FOLDER = 0, 1  # a node's `kind`
LONGEST_DESCRIPTION = 1 << 20


def pack(files: Mapping[str, bytes], root: str = "model") -> bytes:
    """The files as one string of bytes; their names are paths below the folder `root`, with forward slashes."""
    tree: dict = {}
    for path in sorted(files):
        *folders, name = PurePosixPath(path).parts
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = files[path]
    contents, nodes = [], []

    def add(name: str, item: dict | bytes) -> int:
        """Adds what is below a node, then the node; returns its number. The last one is the root."""
        children, region = {}, {"offset": 0, "size": 0}
        if isinstance(item, dict):
            children = {child: add(child, below) for child, below in sorted(item.items())}
        else:
            region = {"offset": sum(map(len, contents)), "size": len(item)}
            contents.append(item)
        nodes.append(
            {
                "children": children,
                "dataRegion": region,
                "kind": FOLDER if isinstance(item, dict) else FILE,
                "name": name,
            }
        )
        return len(nodes) - 1

    add(root, tree)
    description = json.dumps({"nodes": nodes}, separators=(",", ":")).encode("ascii")
    return b"".join([*contents, description[::-1]])


def unpack(data: bytes) -> dict[str, bytes]:
    """The files by their paths below the root.

    Raises:
        ValueError: the bytes are not such a file system, or a part of one.
    """
    # Behind the description are the files' last bytes, which are no text.
    backwards = bytes(data[: -LONGEST_DESCRIPTION - 1 : -1]).decode("utf-8", errors="replace")
    try:
        nodes = json.JSONDecoder().raw_decode(backwards)[0]["nodes"]
        files: dict[str, bytes] = {}

        def collect(index: int, path: str, above: int) -> None:
            node = nodes[index]
            if not 0 <= index < above:  # children come before their folder, so that there is no way round in a circle
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
