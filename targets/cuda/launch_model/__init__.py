"""What a launch takes on a GPU, predicted from what is known when it is compiled. Nothing here was measured by moec."""
