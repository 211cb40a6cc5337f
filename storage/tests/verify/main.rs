//! Planted damage: each invariant of the log, broken alone, is found and named.

mod damage;
mod world;
