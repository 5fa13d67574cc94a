//! Who is in the mesh, and who says so
