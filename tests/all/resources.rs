//! Operations on resources: pools, grants, caches, errors.
