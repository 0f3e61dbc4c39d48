"""Opens stores, trajectories and whole result folders in napari by drag and drop."""
