//! Clients over byte strings, cut anywhere; a whole crowd over real sockets.
