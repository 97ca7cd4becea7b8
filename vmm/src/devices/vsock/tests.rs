//! Tests of the device, natively: a mock driver in guest memory on one side, Unix sockets on the
//! other.

mod chains;
mod flow;
mod guest;
mod hostile;
mod lifecycle;
mod model;
mod streams;
