//! The stand-in joint encoder of the tiny bundle, made of weights that packages ship.

pub mod bert;
pub mod efficientnet;
pub mod weights;
