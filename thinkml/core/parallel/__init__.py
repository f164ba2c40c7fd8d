"""Several devices and several processes: meshes, shardings and collectives."""
