//! This module's durable data.
