"""A page in the browser that shows what trained models do: `python -m imagefolder.demo`."""
