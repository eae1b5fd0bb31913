/** A small model writes faster than anyone reads: pieces are shown one by one, at a pace. */

/** @template Piece */
export class Pace {
  /**
   * @param {(piece: Piece) => void} show
   * @param {() => number} perSecond how many pieces a second; 0 is as they come
   */
  constructor(show, perSecond) {
    this.show = show;
    this.perSecond = perSecond;
    /** @type {Piece[]} */
    this.waiting = [];
    this.timer = 0;
    /** @type {(() => void)[]} */
    this.whenEmpty = [];
  }

  /** @param {Piece} piece */
  push(piece) {
    this.waiting.push(piece);
    if (!this.timer) this.next();
  }

  next() {
    this.timer = 0;
    const speed = document.hidden ? 0 : this.perSecond();
    if (!speed) for (const piece of this.waiting.splice(0)) this.show(piece);
    const piece = this.waiting.shift();
    if (piece === undefined) {
      for (const done of this.whenEmpty.splice(0)) done();
      return;
    }
    this.show(piece);
    this.timer = setTimeout(() => this.next(), 1000 / speed);
  }

  /** Wait until all that was pushed is shown. */
  async shown() {
    if (this.timer) await new Promise((done) => this.whenEmpty.push(() => done(undefined)));
  }

  /** Forget what is not shown yet. */
  stop() {
    this.waiting = [];
    clearTimeout(this.timer);
    this.next();
  }
}
