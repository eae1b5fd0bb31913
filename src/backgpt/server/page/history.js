/** Undo and redo over states that are never changed, only replaced. */

const MOST = 200;

/** @template State */
export class History {
  /** @param {State} first */
  constructor(first) {
    /** @type {State[]} */
    this.past = [];
    this.current = first;
    /** @type {State[]} */
    this.future = [];
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

  /** Return whether there was an undone state, and go there. */
  redo() {
    const after = this.future.pop();
    if (after === undefined) return false;
    this.past.push(this.current);
    this.current = after;
    return true;
  }
}
