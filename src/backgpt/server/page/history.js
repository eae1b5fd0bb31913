/** Undo and redo over states that are never changed, only replaced. */

const MOST = 200;

/**
 * @template State
 * @typedef {{past: State[], current: State, future: State[]}} Kept
 */

/** @template State */
export class History {
  /** @param {Kept<State>} kept */
  constructor({ past, current, future }) {
    this.past = past;
    this.current = current;
    this.future = future;
  }

  /**
   * Go on to a new state; what was undone can no longer be redone.
   * @param {State} state
   */
  push(state) {
    this.past = [...this.past, this.current].slice(-MOST);
    this.current = state;
    this.future = [];
  }

  /** Return whether there was a state to go back to, and go there. */
  undo() {
    const before = this.past.pop();
    if (before === undefined) return false;
    this.future.push(this.current);
    this.current = before;
    return true;
  }

  /**
   * Return what is kept of it in about so many characters of JSON: the current state, and of the
   * others those that are nearest.
   * @param {number} characters
   * @returns {Kept<State>}
   */
  nearest(characters) {
    let room = characters - JSON.stringify(this.current).length;
    const near = (/** @type {State[]} */ states) => {
      let from = states.length;
      for (; from > 0; from -= 1) {
        room -= JSON.stringify(states[from - 1]).length;
        if (room < 0) break;
      }
      return states.slice(from);
    };
    return { past: near(this.past), current: this.current, future: near(this.future) };
  }

  /** Return whether there was an undone state, and go there. */
  redo() {
    const after = this.future.pop();
    if (after === undefined) return false;
    this.past.push(this.current);
    this.current = after;
    return true;
  }
}
