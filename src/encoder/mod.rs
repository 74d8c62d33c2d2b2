//! The stand-in joint encoder of the tiny bundle, made of weights that packages ship.
