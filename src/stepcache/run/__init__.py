"""A run of a pipe, from attaching to undoing. The only room that changes an object of the user's."""
