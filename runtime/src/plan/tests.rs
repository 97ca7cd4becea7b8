//! Golden plans and refused fields.
