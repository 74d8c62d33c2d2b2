//! The requests that leave the process, and their credentials: the object store's client before
//! servers that write down every request.

mod credentials;
mod hosts;
mod recorder;
