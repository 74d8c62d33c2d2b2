//! What leaves the process, for whom, and with which credentials: the object store's client
//! before servers that write down every request.

mod credentials;
mod hosts;
mod recorder;
