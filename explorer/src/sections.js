// Whether an artifact has a section of the document that is not empty.
export function hasSection(index, subject, name) {
  return index.artifacts[subject]?.sections.includes(name) ?? false;
}
