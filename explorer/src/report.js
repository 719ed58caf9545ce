// The document in the page: an index in plain JSON, and one compressed part per section, decoded when it is first read.

export class Report {
  #page;
  #parts = new Map();

  constructor(page) {
    this.#page = page;
    this.index = JSON.parse(page.getElementById("index").textContent);
  }

  // Sections of one subject (an artifact's place, or "report") as an object by name; absent sections are undefined.
  async sections(subject, names) {
    const values = await Promise.all(names.map((name) => this.section(subject, name)));
    return Object.fromEntries(names.map((name, place) => [name, values[place]]));
  }

  section(subject, name) {
    const id = `part-${subject}-${name}`;
    if (!this.#parts.has(id)) this.#parts.set(id, this.#decode(id));
    return this.#parts.get(id);
  }

  async #decode(id) {
    const element = this.#page.getElementById(id);
    if (!element) return undefined;
    const bytes = Uint8Array.from(atob(element.textContent), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  }
}
