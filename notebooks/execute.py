"""Execute notebooks from their beginning and write their outputs into them: `make notebooks`."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import nbformat
import PIL.Image
from nbclient import NotebookClient

TIMEOUT_S = 600  # of a cell
COLOURS = 128  # of a figure; lines on white need no more, and take a third of the bytes


def main(*paths: Path) -> None:
    """Execute each notebook in its own folder.

    What says something of this machine alone is left out, so that a notebook changes only where its outputs do: times,
    the kernel's version, and warnings.
    """
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        stated = notebook.metadata.copy()
        where = {"metadata": {"path": str(path.parent)}}
        NotebookClient(notebook, timeout=TIMEOUT_S, record_timing=False, resources=where).execute()
        notebook.metadata = stated
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
                for output in cell.outputs:
                    if "image/png" in output.get("data", {}):
                        output.data["image/png"] = smaller(output.data["image/png"])
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


def smaller(png: str) -> str:
    """A figure with a palette, as Base64 like the given one."""
    image = PIL.Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    file = io.BytesIO()
    image.quantize(COLOURS).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
