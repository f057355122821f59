//! Calls that are made later: accepted once, tried until they succeed.
