//! The S3 client as configured, and the few calls the project makes with it.
