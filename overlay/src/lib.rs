//! One node of the mesh: discovery and traversal composed into a desired host state
