//! FusionCap as trained.
