//! Files of a directory that was granted as a resource.
