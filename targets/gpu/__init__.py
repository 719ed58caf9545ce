"""Parts of a target for GPUs that do not depend on the vendor: kernels without instructions of one vendor, formats of
their weights, and the choice of a launch. A vendor is a package beside this one, such as :mod:`moec.targets.cuda`."""
