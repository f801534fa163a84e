// Is everything still the object that it was? Around every timed sample the harness asks it of some ten
// thousand members of modules and classes and of the code of some two thousand functions, which Python's own
// loops take a millisecond for. Nothing here runs Python code: what a contender has planted cannot answer for
// itself. Fewer or more than there are is not the same.
#include <pybind11/pybind11.h>

#include <string>

namespace py = pybind11;

namespace {

PyObject* item(const py::tuple& all, Py_ssize_t i) { return PyTuple_GET_ITEM(all.ptr(), i); }

Py_ssize_t size(const py::tuple& all) { return PyTuple_GET_SIZE(all.ptr()); }

void require(bool holds, const char* expected, PyObject* got) {
  if (!holds) throw py::type_error(std::string(expected) + ", got " + Py_TYPE(got)->tp_name);
}

// The dictionary of a module or a class, not what `vars` of it answers.
py::object members_of(PyObject* owner) {
  if (PyModule_Check(owner)) return py::reinterpret_borrow<py::object>(PyModule_GetDict(owner));
  require(PyType_Check(owner), "owners must be modules or classes", owner);
  PyTypeObject* type = reinterpret_cast<PyTypeObject*>(owner);
#if PY_VERSION_HEX >= 0x030C0000
  return py::reinterpret_steal<py::object>(PyType_GetDict(type));
#else
  return py::reinterpret_borrow<py::object>(type->tp_dict);
#endif
}

bool same_members(const py::tuple& owners, const py::tuple& sizes, const py::tuple& names,
                  const py::tuple& members) {
  if (size(sizes) != size(owners) || size(members) != size(names)) return false;
  Py_ssize_t at = 0;
  for (Py_ssize_t i = 0; i < size(owners); ++i) {
    const py::object all = members_of(item(owners, i));
    const Py_ssize_t count = PyLong_AsSsize_t(item(sizes, i));
    if (count == -1 && PyErr_Occurred()) throw py::error_already_set();
    if (PyDict_GET_SIZE(all.ptr()) != count || at + count > size(names)) return false;
    PyObject *name, *member;
    for (Py_ssize_t place = 0; PyDict_Next(all.ptr(), &place, &name, &member); ++at) {
      if (name != item(names, at) || member != item(members, at)) return false;
    }
  }
  return at == size(names);
}

bool same_types(const py::tuple& objects, const py::tuple& types) {
  if (size(types) != size(objects)) return false;
  for (Py_ssize_t i = 0; i < size(objects); ++i) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(item(objects, i))) != item(types, i)) return false;
  }
  return true;
}

bool same_bases(const py::tuple& classes, const py::tuple& bases) {
  if (size(bases) != size(classes)) return false;
  for (Py_ssize_t i = 0; i < size(classes); ++i) {
    require(PyType_Check(item(classes, i)), "classes must be classes", item(classes, i));
    if (reinterpret_cast<PyTypeObject*>(item(classes, i))->tp_bases != item(bases, i)) return false;
  }
  return true;
}

bool same_code(const py::tuple& functions, const py::tuple& codes, const py::tuple& defaults,
               const py::tuple& keyword_defaults) {
  for (const py::tuple* parts : {&codes, &defaults, &keyword_defaults}) {
    if (size(*parts) != size(functions)) return false;
  }
  const auto is = [](PyObject* now, PyObject* before) { return (now ? now : Py_None) == before; };
  for (Py_ssize_t i = 0; i < size(functions); ++i) {
    PyObject* function = item(functions, i);
    require(PyFunction_Check(function), "functions must be functions of Python", function);
    if (!is(PyFunction_GetCode(function), item(codes, i)) ||
        !is(PyFunction_GetDefaults(function), item(defaults, i)) ||
        !is(PyFunction_GetKwDefaults(function), item(keyword_defaults, i))) {
      return false;
    }
  }
  return true;
}

// An empty cell holds itself.
bool same_contents(const py::tuple& cells, const py::tuple& contents) {
  if (size(contents) != size(cells)) return false;
  for (Py_ssize_t i = 0; i < size(cells); ++i) {
    PyObject* cell = item(cells, i);
    require(PyCell_Check(cell), "cells must be cells of closures", cell);
    PyObject* now = PyCell_GET(cell);
    if ((now ? now : cell) != item(contents, i)) return false;
  }
  return true;
}

}  // namespace

PYBIND11_MODULE(_identity, m) {
  m.doc() = "Whether members, types, code and closures are the objects that they were.";
  m.def("same_members", &same_members, py::arg("owners"), py::arg("sizes"), py::arg("names"),
        py::arg("members"),
        "Whether modules and classes have so many members each, of these names and values, in this order.");
  m.def("same_types", &same_types, py::arg("objects"), py::arg("types"),
        "Whether objects are of these types.");
  m.def("same_bases", &same_bases, py::arg("classes"), py::arg("bases"),
        "Whether the tuples of what classes inherit are these.");
  m.def("same_code", &same_code, py::arg("functions"), py::arg("codes"), py::arg("defaults"),
        py::arg("keyword_defaults"), "Whether functions have this code and these values of parameters.");
  m.def("same_contents", &same_contents, py::arg("cells"), py::arg("contents"),
        "Whether cells of closures hold these objects; an empty one holds itself.");
}
