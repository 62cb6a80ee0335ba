"""What the runtime libraries add to an app, in bytes, each figure with its source.

A figure is here only if somebody published it, or if it was measured in a file that was published. None means that no
such figure was found; it is shown as unknown and never estimated.
"""

from __future__ import annotations

from pydantic import Field

from pipeline.bundle.slicing import Runtime, Target
from pipeline.support.document import Document


class RuntimeLibrary(Document):
    """A library that an app ships beside the model.

    Attributes:
        name: what is counted.
        version: the release that was counted.
        date: when the figure was published, at the latest, or measured, YYYY-MM-DD.
        installed_bytes: its size on the phone, for one processor type; None where it is unknown.
        download_bytes: the same compressed; None where it is unknown.
        source: where the figure comes from.
        note: what one has to know about it.
    """

    name: str
    version: str
    date: str
    installed_bytes: int | None = Field(None, ge=0)
    download_bytes: int | None = Field(None, ge=0)
    source: str
    note: str


EXECUTORCH_ANDROID = RuntimeLibrary(
    name="ExecuTorch for arm64-v8a: libexecutorch.so, libxnnpack_executorch_backend.so",
    version="as React Native ExecuTorch 0.10.0 ships it",
    date="2026-09-11",
    installed_bytes=13_451_672 + 2_673_072,
    download_bytes=4_610_000 + 930_000,
    source="https://github.com/software-mansion/react-native-executorch/issues/1464, section 11",
    note="Stripped; compressed with gzip -9. This build also holds kernels for language models and a C++ runtime. "
    "ExecuTorch's own AAR was not measured here; it has 6.6 MB compressed for all its processor types "
    "(https://github.com/pytorch/executorch/pull/17614, 2026-02-23).",
)
FBJNI_ANDROID = RuntimeLibrary(
    name="fbjni for arm64-v8a: libfbjni.so, libc++_shared.so",
    version="0.7.0",
    date="2026-11-27",
    installed_bytes=177_000 + 1_292_904,
    download_bytes=62_764 + 406_557,
    source="com.facebook.fbjni:fbjni:0.7.0 on Maven Central, the entries jni/arm64-v8a of its AAR",
    note="ExecuTorch's Java library needs it (https://github.com/pytorch/executorch/pull/14418).",
)
EXECUTORCH_IOS = RuntimeLibrary(
    name="ExecuTorch's Swift package",
    version="1.5.1",
    date="2026-11-27",
    source="none found",
    note="Its frameworks are static libraries, so the app's own linker decides what stays. Build the app with and "
    "without it and compare.",
)

LIBRARIES: dict[tuple[Target, Runtime], tuple[RuntimeLibrary, ...]] = {
    ("android", "executorch"): (EXECUTORCH_ANDROID, FBJNI_ANDROID),
    ("ios", "coreml"): (),  # Core ML is a part of iOS
    ("ios", "executorch"): (EXECUTORCH_IOS,),
}
