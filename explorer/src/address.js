// Addresses within the page: `#VIEW/PART/PART`, or `#PLACE:VIEW/PART` for another artifact than the first.

export function parse(hash) {
  const text = hash.replace(/^#/, "");
  const [, place, path] = /^(?:(\d+):)?(.*)$/s.exec(text);
  const [view, ...parts] = path.split("/").map(decode);
  return { subject: Number(place ?? 0), view, parts };
}

export function address(subject, view, ...parts) {
  const path = [view, ...parts].map((part) => encodeURIComponent(part)).join("/");
  return `#${subject ? `${subject}:` : ""}${path}`;
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // A stray % is a character like any other.
  }
}
