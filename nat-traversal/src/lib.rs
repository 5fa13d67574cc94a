//! How two nodes reach each other through whatever lies between
