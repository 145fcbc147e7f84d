"""`python -m gst_assets.cli` is `gst`, also where only the files were copied."""

from gst_assets.cli import main

main()
