//! Operations on resources of any protocol.
