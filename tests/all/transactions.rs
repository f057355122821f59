//! Several operations that all take effect or none.
