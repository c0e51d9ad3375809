"""What do we call what we measure? One name, one unit and one meaning per figure, whatever the engine calls it."""
